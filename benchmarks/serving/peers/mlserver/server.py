"""MLServer with a runtime of one's own, in the server's process; its settings are in the environment."""

from __future__ import annotations

from inference import Network
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Server(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [NumpyCodec.encode_output(name, values) for name, values in self.network(rows).items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
