"""The rules, by subject. A new rule is a function in one of these modules; its decorator adds it to the table."""

from tidepool.conformance.cases.binary import rule as binary
from tidepool.conformance.cases.documents import rule as documents
from tidepool.conformance.cases.health import rule as health
from tidepool.conformance.cases.http import rule as http
from tidepool.conformance.cases.inference import rule as inference
from tidepool.conformance.cases.metadata import rule as metadata
from tidepool.conformance.cases.refusals import rule as refusals
from tidepool.conformance.cases.rpc import rule as rpc

CASES = tuple(
    case for table in (health, metadata, inference, refusals, documents, http, binary, rpc) for case in table.cases
)
