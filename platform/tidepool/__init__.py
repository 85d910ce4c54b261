"""tidepool: one elastic pool of machines on which models are trained, versioned and served."""

__version__ = "0.1.0"
