"""A folder of texts as memory: reading and cutting it, finding passages, questions with their facts, and a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from environments import retrieval
from rlft.common.text_files import cut_text, read_folder
from rlft.config import RunConfig
from rlft.environment import loading
from rlft.environment.search import by_meaning, by_words, query_of
from rlft.train.rl import launch
from tests.fakes import save_tiny_model, tiny_config

PAGE = (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text(encoding="utf-8")


def pdf(*pages: str) -> bytes:
    """A PDF whose pages say these lines; an empty one has no text."""
    contents = [f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else "" for text in pages]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
        objects += [f"{page} /Resources << /Font << /F1 3 0 R >> >> >>"]
        objects += [f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"]
    text, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(text))
        text += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size, start = len(objects) + 1, len(text)
    text += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    return f"{text}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """The folder and the questions that docs/retrieval.md speaks of."""
    folder = tmp_path / "texts"
    (folder / "tea").mkdir(parents=True)
    (folder / "kettle.md").write_text(
        "# Kettle\n\nIt holds 7 cups.\n\n## Warranty\n\nThe kettle has a warranty of 3 years.\n"
    )
    (folder / "tea" / "times.txt").write_text("Black tea needs 100 degrees.\n\nGreen tea needs 70 degrees.\n")
    (tmp_path / "questions.jsonl").write_text(re.findall(r"```json\n(.*?)```", PAGE, re.S)[0])
    return folder


# Reading a folder


def test_paragraphs_are_joined_while_they_fit() -> None:
    assert cut_text("a b\n\nc d\n\ne f g", 4, False) == ["a b\n\nc d", "e f g"]
    assert cut_text("a b c d e\n\nf", 2, False) == ["a b", "c d", "e", "f"]  # a long paragraph is cut between words
    assert cut_text("# One\n\na\n\n# Two\n\nb", 9, True) == ["# One\n\na", "# Two\n\nb"]
    assert cut_text("# One\n\na\n\n# Two\n\nb", 9, False) == ["# One\n\na\n\n# Two\n\nb"]  # of plain text it is none
    assert cut_text("\n \n\n", 9, True) == []


def test_a_folder_is_read_in_the_order_of_its_paths(texts: Path) -> None:
    pytest.importorskip("pypdf")
    (texts / "a.pdf").write_bytes(pdf("First page.", "", "Third page."))
    (texts / "notes.docx").write_text("x")
    (texts / "empty.txt").write_text(" \n")
    (texts / ".git").mkdir()
    (texts / ".git" / "HEAD.txt").write_text("not a text of yours")
    found = read_folder(str(texts), words=50)
    assert [(each.source, each.text) for each in found.passages] == [
        ("a.pdf", "First page.\n\nThird page."),
        ("kettle.md", "# Kettle\n\nIt holds 7 cups."),
        ("kettle.md", "## Warranty\n\nThe kettle has a warranty of 3 years."),
        ("tea/times.txt", "Black tea needs 100 degrees.\n\nGreen tea needs 70 degrees."),
    ]
    assert [note.removeprefix(str(texts)) for note in found.notes] == [
        ": left out 1 texts that are empty: empty.txt",
        ": left out 1 files that are not .txt, .md, .markdown, .pdf: notes.docx",
    ]


def test_control_characters_and_line_breaks_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\x00two\x1b[31m\r\n\r\nthree\rfour")
    assert [each.text for each in read_folder(str(tmp_path), words=10).passages] == ["one two [31m\n\nthree\nfour"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"fine\nna\xefve\n", r"a\.txt:2: not UTF-8 text \(byte 0xef\)"),
        ("a.pdf", b"%PDF-1.4 torn", r"a\.pdf: not a PDF that can be read"),
        ("a.pdf", pdf("", ""), r"none of its 2 pages has text; scanned pages need OCR"),
        ("a.docx", b"x", "has no file that ends with"),
        ("a.txt", b"", "the 1 texts in .* are empty"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_folder(str(tmp_path), words=50)


def test_a_page_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pypdf = pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(pdf("One.", "Two."))

    def broken(page: Any) -> str:
        text: str = original(page)
        if "Two" in text:
            raise KeyError("/Font")
        return text

    original = pypdf.PageObject.extract_text
    monkeypatch.setattr(pypdf.PageObject, "extract_text", broken)
    with pytest.raises(ValueError, match=r"a\.pdf, page 2: its text cannot be read: '/Font'"):
        read_folder(str(tmp_path), words=50)


# Finding passages


def test_passages_are_found_by_words() -> None:
    index = by_words(["Otters hold hands.", "Bees dance.", "Otters swim.", "Bees dance."])
    assert index("otters", 5) == [0, 2] or index("otters", 5) == [2, 0]
    assert index("dance", 2) == [1, 3]  # equal ones in the order of the corpus
    assert index("zebra", 2) == index("the of", 2) == index("", 2) == []


def test_passages_are_found_by_meaning(tiny_model: Path) -> None:
    texts = ["Otters hold hands.", "Bees dance.", "Otters swim."]
    index = by_meaning(texts, str(tiny_model))
    assert [index(text, 1) for text in texts] == [[0], [1], [2]]  # a text is nearest to itself
    assert sorted(index("bees", 9)) == [0, 1, 2]
    assert index(" ", 2) == []
    with pytest.raises(ValueError, match="no model in nowhere"):
        by_meaning(texts, "nowhere")


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("Which version of hf-xet is installed?", "version hf-xet installed"),
        ("How long is the warranty of the kettle?", "long warranty kettle"),
        ("Who?", ""),
    ],
)
def test_a_query_is_what_a_question_is_about(question: str, query: str) -> None:
    assert query_of(question) == query


# Questions


def test_the_page_speaks_of_what_there_is(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts.parent)
    config = RunConfig.model_validate(YAML(typ="safe").load(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0]))
    environment = loading.load(config.environment)
    closed = loading.load(config.for_set(config.evaluations[0]).environment)
    assert [task.id for task in closed.heldout] == [task.id for task in environment.heldout]
    assert closed.tools == ()
    assert environment.tools[0]["function"]["name"] == "search"
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.S)[0], {})


def rows_file(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_all_questions_about_a_fact_are_on_one_side(texts: Path) -> None:
    rows = [
        {"question": f"What is {n} in form {form}?", "answer": "7", "fact": f"fact {n}"}
        for n in range(40)
        for form in "ab"
    ]
    environment = retrieval.load(str(texts), rows_file(texts.parent, rows), heldout=0.3, demonstrations=0)
    numbers = [{re.findall(r"\d+", task.id)[0] for task in side} for side in (environment.train, environment.heldout)]
    assert len(numbers[0] | numbers[1]) == 40
    assert not numbers[0] & numbers[1]
    assert len(numbers[1]) > 5


def test_demonstrations_are_searches_that_find_the_answer(texts: Path) -> None:
    rows = [
        {"question": "How many cups does the kettle hold?", "answer": "7"},
        {"question": "Which tea needs 70 degrees?", "answer": "green tea"},
        {"question": "What is the kettle made of?", "answer": "steel"},
        {"question": "Is the kettle red?", "answer": "no"},
    ]
    environment = retrieval.load(str(texts), rows_file(texts.parent, rows), heldout=0, passages=1)
    call, whole = environment.demonstrations[:2]
    assert json.loads(re.findall(r"<tool_call>(.*)</tool_call>", call[-1]["content"])[0])["arguments"]["query"]
    assert "7 cups" in whole[-2]["content"]
    assert whole[-1]["content"] == "7"
    assert len(environment.demonstrations) == 4  # two questions, half of the four
    assert [task.answer for task in environment.train] == ["steel", "no"]
    assert environment.notes == (
        f"2 of 4 answers stand in no passage, or not in one of their source; the first is that of "
        f"{texts.parent / 'rows.jsonl'}:3",
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Who?", "answer": ""}, r"rows\.jsonl:2: no column 'answer'"),
        ({"question": "What?", "answer": "7"}, r"rows\.jsonl:2: the question of .*rows\.jsonl:1 again"),
        (
            {"question": "Who?", "answer": "7", "source": "kettel.md"},
            r"rows\.jsonl:2: its source 'kettel\.md' is no text",
        ),
    ],
)
def test_a_row_that_is_wrong_is_refused_with_its_place(texts: Path, row: dict[str, str], says: str) -> None:
    file = rows_file(texts.parent, [{"question": "What?", "answer": "7"}, row])
    with pytest.raises(ValueError, match=says):
        retrieval.load(str(texts), file)


@pytest.mark.parametrize(
    ("corpus", "questions", "says"),
    [
        ("textts", "q.jsonl", r"no folder textts\. Did you mean 'texts'\? A data set of the hub is written OWNER/NAME"),
        ("texts/teas", "q.jsonl", r"no folder texts/teas\. Did you mean 'texts/tea'\?"),
        ("./text/tea", "q.jsonl", r"no folder text/tea, nor text\. Did you mean 'texts'\?"),
        ("a/b/c", "q.jsonl", r"no folder a/b/c, nor a\. A data set"),
        ("~/texts-of-nobody", "q.jsonl", r"no folder /.*/texts-of-nobody\. A data set"),
        ("texts/kettle.md", "q.jsonl", r"texts/kettle\.md is a file, not a folder"),
        (
            "runs/packages",
            "runs/packages/questions.jsonl",
            r"no folder runs/packages, nor runs\. `python configs/data/packages\.py runs/packages` writes texts",
        ),
        ("texts.jsonl", "q.jsonl", r"no file texts\.jsonl"),
        ("owner/name", "q.jsonl", r"'owner/name' could not be loaded: (?s:.*)hub id"),
    ],
)
def test_a_corpus_that_is_not_there_is_told_from_one_of_the_hub(
    texts: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, questions: str, says: str
) -> None:
    monkeypatch.chdir(texts.parent)
    with pytest.raises(ValueError, match=rf"^args\.corpus: {says}"):
        retrieval.load(corpus, questions)


def test_the_shipped_config_leads_to_its_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = (Path(__file__).parents[1] / "configs" / "retrieval.yaml").read_text(encoding="utf-8")
    config = RunConfig.model_validate(YAML(typ="safe").load(shipped))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"args\.corpus: no folder") as raised:
        loading.load(config.environment)
    command = "`python configs/data/packages.py runs/packages`"
    assert command in str(raised.value)
    assert command in shipped


def test_an_encoder_is_for_embeddings_only(texts: Path, tiny_model: Path) -> None:
    file = rows_file(texts.parent, [{"question": "Which tea needs 70 degrees?", "answer": "green tea"}])
    for search, encoder in (("embeddings", ""), ("bm25", "folder")):
        with pytest.raises(ValueError, match="needs `encoder`"):
            retrieval.load(str(texts), file, search=search, encoder=encoder)  # type: ignore[arg-type]
    environment = retrieval.load(str(texts), file, search="embeddings", encoder=str(tiny_model), heldout=0)
    assert len(environment.train) == 1


# A run


def test_a_run_shows_what_is_known_with_and_without_search(texts: Path, tmp_path: Path) -> None:
    rows = [{"question": f"How many cups, kettle {n}?", "answer": "7", "source": "kettle.md"} for n in range(12)]
    args = {"corpus": str(texts), "questions": rows_file(tmp_path, rows), "passages": 1, "heldout": 0.4}
    config = tiny_config(
        save_tiny_model(tmp_path / "model", context=2048),
        output_dir=str(tmp_path / "runs"),
        steps=1,
        tasks_per_step=1,
        samples_per_task=2,
        environment={"path": "environments.retrieval:load", "args": {**args, "demonstrations": 2}},
        rewards=[
            {"path": "rewards.environment_reward:environment_reward", "name": "right"},
            {"path": "environments.observed.searches:searches", "weight": 0},
        ],
        sft={"examples": 2, "batch_size": 2},
        evaluation={"tasks": 3},
        evaluations=[
            {
                "name": "without-search",
                "tasks": 3,
                "environment": {"path": "environments.retrieval:load", "args": {**args, "search": "none"}},
            }
        ],
    )
    launch.train(config)
    for name in ("base", "sft", "step-000001"):
        told = json.loads((config.run_dir / "evals" / f"{name}.json").read_text())
        assert {"right", "searches", "searches/found"} <= told["rewards"].keys()
        closed = json.loads((config.run_dir / "evals" / "sets" / "without-search" / f"{name}.json").read_text())
        assert closed["rewards"]["searches"]["mean"] == 0
