"""One module for each thing to look at: `show(desk, …) -> View`. Nothing here changes anything."""
