"""`mlserve tune`: the one search over versions and server settings, by what was predicted and then measured."""
