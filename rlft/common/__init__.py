"""Helpers that know nothing of language models: functions by path, files, tables, child processes, Ray, chats."""
