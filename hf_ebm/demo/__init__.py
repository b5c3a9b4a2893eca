"""A demo in the browser: draw pictures, watch the chain, check, rebuild and blend pictures. Needs the extra ``demo``.

`server.serve` runs it, here or in a Space; `push.push_space` makes a Space, from ``template/`` and this package.
Everything a visitor sends is bounded by `limits` on the server's side, whatever the page allows.
"""
