"""``cafsfs cache``: what is in the cache, is it right, and what is to stay; mounted or not."""
