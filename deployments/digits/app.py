"""The digits application, for `serve deploy deployments/digits/serve.yaml`."""

from pathlib import Path

from tidepool.serve.app import application
from tidepool.spec import load_spec

app = application(load_spec(Path(__file__).with_name("spec.yaml")))
