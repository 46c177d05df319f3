"""What turns a folder of pictures into a model: the plan, the stages and their warm starts.
It knows neither the command line nor the page."""
