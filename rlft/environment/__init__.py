"""Where tasks come from: the environment contract, its loading, tools, and the environments of other systems."""
