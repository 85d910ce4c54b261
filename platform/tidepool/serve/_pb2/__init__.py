"""Messages of the Open Inference Protocol, generated from open_inference.proto by `make protos`. Not edited by hand."""
