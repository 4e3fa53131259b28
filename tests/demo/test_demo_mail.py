"""The mailbox of the demo: real messages, their parsing, the Maildir, and the models for them."""

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.demo import (
    Category,
    IncomingMail,
    MaildirError,
    count_by_message_id,
    create_maildir,
    deliver,
    demo_expected,
    demo_mails,
    file_into,
    find_by_message_id,
    make_demo_maildir,
    read_mail,
    read_maildir,
    unanswerable,
)
from overnight.testing import spawn_scripted_provider

CORPUS = demo_mails()
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def mail_number(number: int) -> IncomingMail:
    key = next(key for key in CORPUS if f".M{number:03d}" in key)
    return read_mail(key, CORPUS[key])


# ── the corpus ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_corpus_and_expectations_are_complete() -> None:
    stored = {place.name for place in (files("overnight.demo") / "mail").iterdir()}
    expected = demo_expected()
    assert len(stored) == len(CORPUS) == len(expected) >= 44
    assert {entry.category for entry in expected.values()} == set(get_args(Category))
    assert 24 <= sum(entry.answer for entry in expected.values()) <= 32


def test_corpus_names_only_reserved_domains_and_mixes_line_endings() -> None:
    for data in CORPUS.values():
        domains = re.findall(rb"@([\w-]+(?:\.[\w-]+)+)|https?://([\w.-]+)", data)
        for host in (a or b for a, b in domains):
            assert re.fullmatch(rb"(.*\.)?example\.(com|org|net)|.*\.test|198\.51\.100\.\d+", host), host
    with_crlf = [data for data in CORPUS.values() if b"\r\n" in data]
    assert with_crlf
    assert len(with_crlf) < len(CORPUS)


@pytest.mark.parametrize("key", CORPUS)
def test_every_message_is_parsed(key: str) -> None:
    mail = read_mail(key, CORPUS[key])
    assert not any(problem.startswith("not readable") for problem in mail.problems), mail.problems
    assert mail.text or "no text" in mail.problems
    assert mail.subject.isprintable()
    assert "\ufffd" not in mail.text + mail.subject
    if demo_expected()[key].answer:
        assert unanswerable(mail) == ""
    if mail.is_list or mail.auto_submitted:
        assert unanswerable(mail) != ""


READINGS: list[tuple[int, Callable[[IncomingMail], Any], Any]] = [
    (3, lambda m: "<" in m.text or "sister’s new café" not in m.text, False),
    (4, lambda m: (m.sender_name, m.subject[-10:]), ("Jörg Müllersmann", "sterreich?")),
    (5, lambda m: (m.sender_name, m.subject), ("佐藤 恵", "ご注文TT-10550について")),
    (6, lambda m: "批发价格" in m.text and m.subject, "咨询批发价格"),
    (7, lambda m: "my order TT-10533 before it leaves?" in m.text and "> Your order TT-10533 has" in m.text, True),
    (8, lambda m: len(m.references), 2),
    (9, lambda m: (m.sender, m.from_address), ("agnes.thorvald@example.org", "forms@tallowandtide.test")),
    (10, lambda m: (m.problems, m.attachments), (("close boundary not found",), ("basket.csv",))),
    (11, lambda m: (m.message_id, m.problems), ("", ("no Message-ID",))),
    (14, lambda m: m.attachments, ("cracked.png",)),
    (17, lambda m: "2 × £27.50" in m.text and m.problems, ("text is not in its declared charset us-ascii",)),
    (18, lambda m: (m.sender_name, m.subject), ("Hélène Lefèvre", "Retour de la tasse émaillée")),
    (19, lambda m: "“30 days”" in m.text, True),
    (21, lambda m: m.attachments, ("Bestellungen für November.csv",)),
    (
        24,
        lambda m: ("I wish to complain" in m.text, m.problems),
        (True, ("base64 is truncated: only the existing part was read",)),
    ),
    (26, lambda m: max(map(len, m.text.split("\n"))) > 3_000, True),
    (28, lambda m: m.attachments, ("logo.png", "quantities.csv")),
    (29, lambda m: m.attachments, ("CV Inês Duarte.pdf",)),
    (30, lambda m: (m.date, m.problems), (None, ("no Date",))),
    (31, lambda m: (m.is_list, "price chart" in m.text), (True, False)),
    (33, lambda m: (m.is_list, m.auto_submitted, "oil is dear" in m.text), (True, False, True)),
    (34, lambda m: m.auto_submitted, True),
    (36, lambda m: (m.auto_submitted, "Thank you for your order" in m.text), (True, False)),
    (37, lambda m: m.auto_submitted, True),
    (39, lambda m: (m.date, m.subject), (None, "Вы выиграли !!! WINNER !!!")),
    (40, lambda m: "\0" in m.text or "\x1b" in m.text, False),
    (41, lambda m: "<https://login.parcelhop-tracking.test/pay?id=99>" in m.text, True),
    (46, lambda m: m.subject, "Shipping to Ireland? Bcc: victim@example.test X-Evil: 1"),
    (46, lambda m: (m.sender, m.references), ("c.kestrel@example.net", ())),
    (47, lambda m: m.problems, ("no text",)),
]


@pytest.mark.parametrize(("number", "reading", "expected"), READINGS)
def test_parsed_fields_of_a_message(number: int, reading: Callable[[IncomingMail], Any], expected: Any) -> None:
    assert reading(mail_number(number)) == expected


def test_instructions_hidden_in_html_never_reach_the_text() -> None:
    mail = mail_number(45)
    assert "come with lids" in mail.text
    assert "Fenella Marsh" in mail.text
    for word in ("ignore", "collector", "system prompt", "machines only", "Assistant"):
        assert word not in mail.text
    assert any("hidden in the HTML" in problem for problem in mail.problems)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p style='color:red; DISPLAY : none'>secret</p>seen", "seen"),
        ("<div hidden><b>secret<p>secret</b></div>seen", "seen"),
        ("<p hidden>secret<p>seen", "seen"),
        ("<div style='opacity:0'>secret</div><div style='opacity:0.5'>seen</div>", "seen"),
        ("<div style='font-size:0px'>secret</div><div style='font-size:10px'>seen</div>", "seen"),
        ("<div style='dis/**/play:none'>secret</div>seen", "seen"),
        (f"<div title='{'x' * 3_000}' style='display:none'>secret</div>seen", "seen"),
        ("<div style='color:red' style='display:none'>seen</div>", "seen"),
        ("<head><base>secret</head><template>secret</template>seen", "seen"),
        ("<SCRIPT>a < b </SCRIPT >seen", "seen"),
        ("a &lt; b &amp; c<!-- no --> <3", "a < b & c <3"),
        ("<ul><li>one<li>two</ul><div>three</div><div>four</div>", "one\ntwo\nthree\nfour"),
        ("seen<div style='display:none'>secret, never closed", "seen"),
        ("seen<!-- never closed", "seen"),
        ("<a href='https://shop.test/'>https://shop.test/</a>", "https://shop.test/"),
    ],
)
def test_html_shows_what_a_reader_would_see(source: str, text: str) -> None:
    assert read_mail("k", b"Content-Type: text/html\n\n" + source.encode()).text == text


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=2_000))
def test_any_bytes_are_parsed(data: bytes) -> None:
    assert read_mail("k", data).key == "k"


@settings(max_examples=250, deadline=None)
@given(
    key=st.sampled_from(list(CORPUS)),
    cut=st.floats(0, 1),
    patch=st.binary(max_size=12)
    | st.sampled_from([b'"', b"\r\n\r\n", b"=?utf-8?q?=00?=", b"<", b"(((", b"--", b"\xff"]),
)
def test_damaged_message_is_parsed(key: str, cut: float, patch: bytes) -> None:
    data = CORPUS[key]
    at = int(len(data) * cut)
    for damaged in (data[:at], data[:at] + patch + data[at:], patch + data[at:]):
        mail = read_mail(key, damaged)
        assert not CONTROL.search(mail.subject)
        assert not mail.sender or re.fullmatch(r"[!-~]+@[!-~]+", mail.sender)
        mail.text.encode()


@pytest.mark.timeout(15)
@pytest.mark.parametrize(
    "data",
    [
        b"Content-Type: text/html\n\n" + b"<a " * 300_000,
        b"Content-Type: text/html\n\n" + b"<!--" * 200_000,
        b"Content-Type: text/html\n\n" + b'<a ">"' * 150_000,
        b"Content-Type: text/html\n\n" + b"<div>" * 150_000,
        b"Content-Type: text/html\n\n" + b" \x1e " * 300_000,
        b"Content-Type: text/plain; " + b"a=b;" * 250_000 + b"\n\nx",
        b"Content-Disposition: attachment" + b";" * 1_000_000 + b"\n\nx",
        b"Content-Type: text/plain; format=flowed\n\n" + b"a \n" * 300_000,
        b"Content-Type: text/plain; charset=idna\n\n" + b"xn--a." * 150_000,
        b"From: " + b"(" * 100_000 + b"\n\nx",
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(3_000)),
        b"Content-Type: message/rfc822\n\n" * 20_000,
    ],
    ids=lambda data: data[:60].decode(),
)
def test_costly_messages_are_read_in_bounded_time(data: bytes) -> None:
    assert len(read_mail("k", data).text) <= 20_000


# ── the Maildir ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_demo_maildir_reads_in_stable_order(tmp_path: Path) -> None:
    assert make_demo_maildir(tmp_path / "box") == len(CORPUS)
    assert list((tmp_path / "box" / "new").iterdir())
    assert list((tmp_path / "box" / "cur").iterdir())
    mails = read_maildir(tmp_path / "box")
    assert [mail.key for mail in mails] == list(CORPUS)
    assert [mail.key for mail in read_maildir(tmp_path / "box", limit=7)] == list(CORPUS)[:7]
    assert mails[12].message_id == mails[11].message_id
    assert mails[12].problems == (f"same Message-ID as {mails[11].key}",)


def test_a_second_layout_changes_nothing(tmp_path: Path) -> None:
    make_demo_maildir(tmp_path)
    file_into(tmp_path, next(iter(CORPUS)), "Answered")
    assert make_demo_maildir(tmp_path) == 0
    assert len(read_maildir(tmp_path)) == len(CORPUS) - 1


def test_unreadable_messages_are_returned_with_problems(tmp_path: Path) -> None:
    create_maildir(tmp_path / "box")
    new = tmp_path / "box" / "new"
    (tmp_path / "outside").write_text("Subject: secret\n\nsecret")
    (new / "1.link").symlink_to(tmp_path / "outside")
    os.mkfifo(new / "2.pipe")
    (new / "3.folder").mkdir()
    (new / "4.empty").touch()
    (new / "5.huge").write_bytes(b"From: a@example.com\nSubject: huge\n\n" + b"x" * 2_000_000)
    os.link(new / "4.empty", os.fsencode(new) + b"/6.\xff\xfe")
    (new / ".hidden").touch()
    mails = read_maildir(tmp_path / "box")
    assert [mail.key for mail in mails] == ["1.link", "2.pipe", "3.folder", "4.empty", "5.huge", "6.\\udcff\\udcfe"]
    assert all(mail.problems for mail in mails)
    assert not any("secret" in mail.text + mail.subject for mail in mails)
    assert mails[4].subject == "huge"
    assert len(mails[4].text) <= 20_000
    assert file_into(tmp_path / "box", mails[5].key, "Other")


def test_folder_without_maildir_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MaildirError, match="not a Maildir"):
        read_maildir(tmp_path)
    with pytest.raises(MaildirError, match="not a Maildir"):
        find_by_message_id(tmp_path, "<a@example.com>")


def test_filing_is_idempotent_and_keeps_flags(tmp_path: Path) -> None:
    create_maildir(tmp_path)
    (tmp_path / "cur" / "7.a.shop:2,F").write_bytes(b"Subject: hello\r\n\r\n\xff")
    assert file_into(tmp_path, "7.a.shop", "Answered") is True
    assert file_into(tmp_path, "7.a.shop", "Answered") is False
    assert [place.name for place in (tmp_path / ".Answered" / "cur").iterdir()] == ["7.a.shop:2,FS"]
    assert (tmp_path / ".Answered" / "cur" / "7.a.shop:2,FS").read_bytes() == b"Subject: hello\r\n\r\n\xff"
    assert (tmp_path / ".Answered" / "maildirfolder").exists()
    assert read_maildir(tmp_path) == []
    with pytest.raises(MaildirError, match=r"no mail '7\.a\.shop'"):
        file_into(tmp_path, "7.a.shop", "Ignored")


def test_filing_never_overwrites(tmp_path: Path) -> None:
    create_maildir(tmp_path)
    deliver(tmp_path, b"one", unique="1.a")
    file_into(tmp_path, "1.a", "Answered")
    deliver(tmp_path, b"two", unique="1.a")
    with pytest.raises(MaildirError, match="remove one of the two"):
        file_into(tmp_path, "1.a", "Answered")
    assert (tmp_path / ".Answered" / "cur" / "1.a:2,S").read_bytes() == b"one"


def test_concurrent_filers_move_a_mail_once(tmp_path: Path) -> None:
    make_demo_maildir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(lambda key: file_into(tmp_path, key, "Answered"), list(CORPUS) * 4))
    assert sum(moved) == len(CORPUS)
    assert len(list((tmp_path / ".Answered" / "cur").iterdir())) == len(CORPUS)


@pytest.mark.parametrize("folder", ["", "..", "a/b", "../x", ".x", "a..b", "ü", "a\n", "x" * 65])
def test_unknown_folder_names_are_rejected(tmp_path: Path, folder: str) -> None:
    create_maildir(tmp_path)
    deliver(tmp_path, b"", unique="1.a")
    with pytest.raises(MaildirError, match="not a valid folder name"):
        file_into(tmp_path, "1.a", folder)
    assert {place.name for place in tmp_path.iterdir()} == {"new", "cur", "tmp"}


def test_message_ids_are_found_in_every_folder_and_only_in_headers(tmp_path: Path) -> None:
    create_maildir(tmp_path)
    folded = deliver(tmp_path, b"Subject: a\r\nmessage-id:\r\n <folded@example.com>\r\n\r\nbody")
    deliver(tmp_path, b"Subject: b\nMessage-ID: <x@example.com>\n\nMessage-ID: <quoted@example.com>\n")
    filed = deliver(tmp_path, b"Message-ID: <x@example.com>\n\n")
    file_into(tmp_path, filed, "Archive")
    assert find_by_message_id(tmp_path, "<folded@example.com>") == folded
    assert find_by_message_id(tmp_path, "<quoted@example.com>") is None
    assert count_by_message_id(tmp_path) == {"<folded@example.com>": 1, "<x@example.com>": 2}
    with pytest.raises(ValueError, match="not a Message-ID"):
        find_by_message_id(tmp_path, "x@example.com")


# ── the scripted models ─────────────────────────────────────────────────────────────────────────────────────────────


def ask(connection: HTTPConnection, model: str, system: str, mail: IncomingMail) -> tuple[int, str]:
    user = f"Mail-Key: {mail.key}\nFrom: {mail.sender_name} <{mail.sender}>\nSubject: {mail.subject}\n\n{mail.text}"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    headers = {"content-type": "application/json", "authorization": "Bearer none"}
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": model, "messages": messages}), headers)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    return answer.status, content["choices"][0]["message"]["content"] if answer.status == 200 else ""


@pytest.fixture(scope="module")
def models() -> Iterator[HTTPConnection]:
    with spawn_scripted_provider(Path(str(files("overnight.demo") / "rules.yaml"))) as provider:
        connection = HTTPConnection(provider.host, provider.port)
        yield connection
        connection.close()


def test_scripted_classifier_matches_the_corpus(models: HTTPConnection) -> None:
    found = {}
    for key, data in CORPUS.items():
        status, text = ask(models, "gpt-5.4-mini", "Classify this mail of a small shop.", read_mail(key, data))
        answer = json.loads(text)
        assert status == 200
        assert answer["reason"]
        found[key] = (answer["category"], answer["answer"])
    assert found == {key: (expected.category, expected.answer) for key, expected in demo_expected().items()}


def test_strong_model_fails_for_a_while_and_recovers(models: HTTPConnection) -> None:
    mails = [read_mail(key, CORPUS[key]) for key, expected in demo_expected().items() if expected.answer]
    asked = [ask(models, "claude-opus-4.6", "Draft a reply for the shop.", mail) for mail in mails]
    assert [status for status, _ in asked] == [200] * 5 + [503] * 8 + [200] * (len(mails) - 13)
    stand_in = [ask(models, "gpt-5.4", "Draft a reply for the shop.", mail) for mail in mails]
    assert all(status == 200 and "Tallow and Tide" in text for status, text in stand_in)
    assert len({text for _, text in stand_in}) >= 12
    assert "TT-10482" in stand_in[0][1]
