"""Where tasks come from: the environment contract and its loading."""
