"""The tabs of the page, one file a tab.
They share controls and the engine, and do not know each other."""
