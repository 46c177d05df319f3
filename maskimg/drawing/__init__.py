"""The engine: a Request and an Edit become codes and pictures, one or thousands; it also reads and writes models.
It knows neither training nor any command or page."""
