"""What has nothing to do with language models: files, tables, imports by path, child processes, the Ray cluster."""
