"""Training LoRAs on models of one's own, and the three demonstration LoRAs."""
