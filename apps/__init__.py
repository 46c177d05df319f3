"""People's entrances: the page and the batch script, installed as `maskimg_apps`.
Nothing below imports them; they know no network."""
