"""Give it a trained model and a service-level objective; get the production configuration back, with the proof."""

__version__ = "0.1.0"
