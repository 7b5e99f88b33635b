"""One module for each thing that a runbook mends: `diagnose(desk, …) -> Diagnosis`, whose plan is not yet carried out."""
