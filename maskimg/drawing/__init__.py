"""The engine: what a person asks for and what an edit begins with become finished codes and pictures, one or thousands.
It knows neither training nor any command, page or model directory."""
