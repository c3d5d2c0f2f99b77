"""The join: model variants, served by settings, under loads. What `serve` and `bench` do together is done here."""
