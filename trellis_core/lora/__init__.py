"""LoRAs: any file format -> changes of named parameters -> applied while a network runs, or merged into its weights.

Applying is our own thin layer of forward hooks and not PEFT's: PEFT's injection renames the parameters that hosts and
loaders address by name, needs the transformers and accelerate packages, and knows neither full differences nor several
kinds of adapters on one layer. Tests hold this layer to PEFT's numbers; the trainer trains through PEFT (docs/method/lora.md).
"""
