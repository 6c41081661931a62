"""What a model family and a tuning method must provide, and the registries of both."""
