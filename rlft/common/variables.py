"""Which environment variables reach processes that run other people's code: a short list, and those that are named.

An environment often holds keys: of providers, trackers, clouds. A reward cannot leak what it does not have. This holds
for what it reads, prints and hands to programs by mistake; code that is out for a key finds other ways, such as /proc
and the files of the same user.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

_NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_ROOT", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "NLTK_DATA", "CC", "CXX"),
    *("TOKENIZERS_PARALLELISM", "OPENBLAS_NUM_THREADS", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
_FAMILIES = (
    *("LC_", "PYTHON", "RLFT_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "TRITON_"),
    *("CUDA_", "NVIDIA_", "OMP_", "GOMP_", "KMP_", "MKL_", "NUMEXPR_"),
)
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)", re.IGNORECASE)
_PROXY = re.compile(r"(http|https|ftp|all|no)_proxy", re.IGNORECASE)


def passed(variables: Mapping[str, str], named: Collection[str]) -> dict[str, str]:
    """The variables that pass: paths, languages, threads, devices, caches, proxies without a password, and `named`.

    Raises:
        ValueError: a named variable is not set.
    """
    if missing := sorted(set(named) - variables.keys()):
        raise ValueError(
            f"scoring.environment names {missing[0]}, which is not set here; set it where rlft is started, or leave "
            "it out"
        )
    return {name: value for name, value in variables.items() if name in named or _is_harmless(name, value)}


def _is_harmless(name: str, value: str) -> bool:
    if _PROXY.fullmatch(name):
        return "@" not in value
    return name in _NAMES or (name.startswith(_FAMILIES) and not _SECRET.search(name))


def mentioned(text: str, names: Collection[str]) -> list[str]:
    """The names that a text mentions, those alone that are no ordinary word, sorted."""
    return sorted({word for word in re.findall(r"\w+", text) if "_" in word.strip("_")} & set(names))


def check_names(names: Sequence[str]) -> Sequence[str]:
    """Names of environment variables as they were given, if they can be such.

    Raises:
        ValueError: one cannot be a variable's name; what stands behind a `=`, perhaps a key, is not repeated.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            shown = name.partition("=")[0]
            raise ValueError(
                f"{shown!r}... is no name of an environment variable; list names alone, the values stay in the "
                "environment that rlft is started in"
            )
    return names
