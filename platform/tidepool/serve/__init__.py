"""Serving: the Open Inference Protocol over registered artifacts, as Ray Serve applications.

`protocol`, `codecs` and `dataplane` know no HTTP, gRPC or Ray; `rest` is a thin transport; `app` puts both into
Serve deployments; `versions` carries alias moves to the replicas; `shared` is a replica of many models, some of which
`shelf` keeps in memory.
"""
