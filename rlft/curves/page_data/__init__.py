"""The data of a run's page in one JSON form, for the file that works offline and for the server that shows it live."""

from rlft.curves.page_data.whole import FORMAT, page_data

__all__ = ["FORMAT", "page_data"]
