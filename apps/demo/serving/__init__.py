"""What stands between the page and those who visit it: uploads, errors, visitors, models in memory, proxies.
It knows no tab."""
