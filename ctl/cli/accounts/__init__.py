"""`xlbctl user` and `token`: the accounts of xlb-web."""
