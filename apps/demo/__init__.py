"""The page: it draws what `maskimg.drawing` yields, and its calls are the HTTP API.
It knows nothing of networks or of how codes are drawn."""
