"""The views of a search: tables, plots, pages, the live display and the dashboard."""
