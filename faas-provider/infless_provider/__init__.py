"""The provider: OpenFaaS API, invocation path, state, autoscaler, backends, and the `infless` command."""
