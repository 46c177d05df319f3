"""The commands of `maskimg`, by what they are for; `maskimg.cli` finds and runs them."""
