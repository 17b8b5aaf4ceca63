"""Models that need no hub: fetched by package name, or shipped beside this file."""
