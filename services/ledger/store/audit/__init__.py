"""The auditor's SQL: it asks the tables what they say, and shares no statement with what wrote them.

Every check is a SELECT of `tenant_id`, the check's name and what was observed; a row is a disagreement. Probes stand
in laterals behind OFFSET 0, so that no plan walks over a history that was checked before.
"""
