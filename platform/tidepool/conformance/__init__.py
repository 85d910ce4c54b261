"""A conformance suite for servers of the Open Inference Protocol v2, over REST and gRPC.

`python -m tidepool.conformance URL [--grpc HOST:PORT] [--model NAME]` asks a running server, any server, about every
rule in `cases`. Needs nothing but the standard library, httpx, grpcio and protobuf.
"""
