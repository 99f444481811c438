"""Promptor's faces: the command in a real terminal with a real model, the page in a real browser.

The page's agent and target are scripted, since it is the page that is looked at here.  The browser is Debian's
Chromium; where it is missing, those tests are skipped and the page is checked through its calls alone.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import uvicorn

from cuelight.cli.main import run
from cuelight.conversation.promptor import Promptor, promptor
from cuelight.errors import CuelightError
from cuelight.lm import Request, connect, scripted
from cuelight.studio.server import application

DRAFT = "Instruction: You label moods.\nActions:\n- Answer with one word.\nFacts:\n- Notes are short."
BETTER = (
    "Instruction: You are a careful judge.\nActions:\n- Answer with one word.\nFacts:\n- Notes are short."
)
BRIEF = {
    "goals": "Say yes or no",
    "users": "Owners",
    "data": "Notes",
    "context": "A till",
    "output": "One word",
}
ROWS = [{"text": f"typed number {n}", "wanted": "yes" if n % 2 else "no"} for n in range(4)]


def writes(request: Request) -> str:
    text = str(request.messages[-1]["content"])
    if "three different" in text:
        return "- Owners of shops\n- Staff at the till"
    if "Score it" in text:
        return "clarity: 4\nDefects:\n- too <b>vague</b>"
    return BETTER if "better prompt" in text else DRAFT


def answers(request: Request) -> str:
    prompt = str(request.messages[-1]["content"])
    number = int(prompt.rsplit("typed number ", 1)[1].split()[0])
    return ("yes" if number % 2 else "no") if "careful judge" in prompt else "no"


# ---- a terminal, with a real model ---------------------------------------------------------------------------------

TALK = ["--lm", "minimind2-26m", "--writing-tokens", "24", "--answer-tokens", "4", "--max-rounds", "2"]


def test_a_conversation_in_a_terminal_that_is_interrupted_and_goes_on_from_a_file(
    tmp_path: Path, capfd: Any
) -> None:
    where = tmp_path / "talk"
    command = ["-m", "cuelight.cli.main", "promptor", *TALK, "--output", str(where)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    talk = pexpect.spawn(
        sys.executable, command, env=environment, encoding="utf-8", timeout=60, dimensions=(40, 120)
    )
    talk.expect("What should the model do")
    for said, asked in (
        ("Name the colour", "Who will use it"),
        ("/nonsense", "there is no /nonsense"),
        ("users: painters", "What does the typed text look like"),
        ("skip", "Where is it used"),
        ("skip", "What must the answer look like"),
        ("One word", "Give examples"),
        ("the sky => blue", "> "),
        ("the grass => green", "> "),
        ("", "Round 1 of 2"),
        ("use 7", "there is no version 7"),
        ("/prompt", "{text}"),
    ):
        talk.expect("> ")
        talk.sendline(said)
        talk.expect_exact(asked)
    talk.expect("> ")
    talk.sendintr()
    talk.expect("the same command goes on")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 130
    saved = json.loads((where / "promptor.json").read_text())
    assert saved["phase"] == "verdict"
    assert saved["brief"]["users"] == "painters"
    # the same conversation, finished by a file
    file = tmp_path / "brief.toml"
    file.write_text("goals = 'Name the colour'\naccept = 0.0\n")
    assert run(["promptor", *TALK, "--output", str(where), "--answers", str(file), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["prompt"] == (where / "prompt.txt").read_text()
    assert found["metric"] == "exact"
    assert found["calls"]["target"] == saved["calls"]["target"]
    assert json.loads((where / "promptor.json").read_text())["phase"] == "done"


def test_an_interrupt_while_a_model_works_stops_at_once_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "brief.json"
    file.write_text(json.dumps({"goals": "Name the colour", "examples": [{"text": "sky", "wanted": "blue"}]}))
    words = [
        "-m",
        "cuelight.cli.main",
        "promptor",
        "--lm",
        "minimind2-26m",
        "--no-cache",
        "--writing-tokens",
        "2000",
    ]
    words += ["--output", str(tmp_path / "talk"), "--answers", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    talk = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8", timeout=60)
    talk.expect("Give examples")
    time.sleep(0.5)
    began = time.monotonic()
    talk.sendintr()
    talk.expect("run the same command again")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 130
    assert time.monotonic() - began < 5
    assert json.loads((tmp_path / "talk" / "promptor.json").read_text())["phase"] == "draft"


def test_a_small_model_that_follows_instructions_poorly_gets_to_the_end(tmp_path: Path) -> None:
    """smollm2-135m as both: the flow holds, versions are really tested, the figures can be had again from the files."""
    model = connect("smollm2-135m", cache=str(tmp_path / "cache"))
    rows = [
        ("I loved it.", "positive"),
        ("A dull mess.", "negative"),
        ("Great acting.", "positive"),
        ("Awful.", "negative"),
    ]
    brief = {
        "goals": "Say whether a film review is positive or negative.",
        "output": "One word: positive or negative",
        "examples": [{"text": text, "wanted": wanted} for text, wanted in rows],
    }
    options: dict[str, Any] = {"max_rounds": 1, "writing_tokens": 32, "answer_tokens": 4}
    agent = promptor(brief, lm=model, output=tmp_path / "talk", **options)
    assert agent.state.steps == ["engage", "draft", "criticise", "test", "finish"]
    assert [v.origin for v in agent.state.versions][:2] == ["one line", "brief"]
    uses = [case.use for case in agent.state.cases]
    assert (uses.count("show"), uses.count("test"), uses.count("report")) == (1, 2, 1)
    assert all(len(v.outputs) == 2 and v.score is not None for v in agent.state.versions)
    assert agent.best is not None and agent.best.score == max(v.score or 0 for v in agent.state.versions)
    # the saved prompt, byte for byte, gives the recorded answers and figure
    saved = (tmp_path / "talk" / "prompt.txt").read_text()
    tests = [case for case in agent.state.cases if case.use == "test"]
    assert agent.predict([case.values for case in tests], prompt=saved) == list(agent.best.outputs.values())
    assert agent.evaluate(tests, prompt=saved) == agent.best.score
    # all of it again from the cache: nothing is paid for twice, and it ends in the same state
    calls = model.meter.spent.calls
    again = promptor(brief, lm=model, **options)
    assert model.meter.spent.calls == calls
    assert again.state == agent.state


def test_mistakes_are_one_line(tmp_path: Path, capsys: Any) -> None:
    from filelock import FileLock

    def refused(*words: str) -> str:
        assert run(["promptor", *words]) == 2
        error: str = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    where = str(tmp_path / "talk")
    base = ("--lm", "minimind2-26m", "--output", where)
    assert "--lm: is missing" in refused()
    assert "did you mean '--target'" in refused(*base, "--targe", "x")
    assert "max_rounds" in refused(*base, "--max-rounds", "0")
    assert "answers" in refused(*base, "--answers", "nowhere.toml")
    file = tmp_path / "brief.json"
    file.write_text('{"goal": "x"}')
    assert "did you mean 'goals'" in refused(*base, "--answers", str(file))
    (tmp_path / "file").write_text("")
    assert "is a file; give a folder" in refused("--lm", "minimind2-26m", "--output", str(tmp_path / "file"))
    with FileLock(Path(where) / ".lock"):
        assert "is in use by another conversation" in refused(*base)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "can not be listened on" in refused(*base, "--web", "--port", str(taken.getsockname()[1]))


# ---- the page's calls ------------------------------------------------------------------------------------------------


class Server:
    """The page over an agent, on a port of its own."""

    def __init__(self, agent: Promptor) -> None:
        self.agent = agent
        config = uvicorn.Config(application(agent), host="127.0.0.1", port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = None if body is None else body if isinstance(body, str) else json.dumps(body)
        head = {"content-type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, sent, head)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if "json" in answer.headers["content-type"] else text

    def settled(self) -> dict[str, Any]:
        until(lambda: not self.ask("/api/state")[1]["busy"])
        found: dict[str, Any] = self.ask("/api/state")[1]
        return found

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(5)


def until(true: Callable[[], Any], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.03)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(Promptor(scripted(writes, "agent"), scripted(answers, "target"), output=tmp_path / "talk"))
    yield made
    made.close()


def test_the_whole_conversation_through_the_calls(server: Server, tmp_path: Path) -> None:
    for text in BRIEF.values():
        status, _ = server.ask("/api/reply", {"text": text})
        assert status == 200
    assert server.settled()["turn"]["kind"] == "examples"
    lines = "\n".join(["text,label", *(f"{row['text']},{row['wanted']}" for row in ROWS)])
    assert server.ask("/api/file", {"name": "rows.csv", "text": lines})[0] == 200
    state = server.settled()
    assert state["turn"]["kind"] == "verdict"
    assert [v["origin"] for v in state["versions"]] == ["one line", "brief", "draft"]
    assert server.ask("/api/reply", {"verdict": {"remarks": "Be careful"}})[0] == 200
    state = server.settled()
    assert (state["best"], state["versions"][3]["score"]) == (3, 1.0)
    assert server.ask("/prompt.txt") == (200, state["prompt"])
    assert server.ask("/api/try", {"values": {"text": "typed number 5"}}) == (200, {"answer": "yes"})
    assert server.ask("/api/reply", {"verdict": {"accept": True}})[0] == 200
    assert server.settled()["turn"]["kind"] == "done"
    assert (tmp_path / "talk" / "prompt.txt").read_text() == state["prompt"]
    assert server.ask("/api/more", {})[1]["turn"]["kind"] == "verdict"
    assert server.ask("/api/restart", {})[1]["turn"]["slot"] == "goals"


def test_the_page_takes_no_requests_but_its_own(server: Server) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("/api/state", Host="evil.example")[0] == 403  # a name that was made to point here
    assert server.ask("/api/reply", {"text": "x"}, Origin="http://evil.example")[0] == 403
    assert server.ask("/api/reply", {"text": "Say yes or no"}, Origin=own)[0] == 200
    for path in (
        "/page/../server.py",
        "/page/%2e%2e%2fserver.py",
        "/page/nothing.js",
        "/docs",
        "/openapi.json",
    ):
        assert server.ask(path)[0] == 404
    assert "default-src 'self'" in http_headers(server, "/")["content-security-policy"]


def http_headers(server: Server, path: str) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return {k.lower(): v for k, v in answer.getheaders()}


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/api/reply", {}, "give one of text, examples and verdict"),
        ("/api/reply", {"text": 3}, "text: "),
        ("/api/reply", {"texts": "x"}, "texts: "),
        ("/api/reply", "{broken", "json"),
        ("/api/slot", {"slot": "colour", "text": "red"}, "slot: 'colour' is unknown"),
        ("/api/version", {"text": "no field"}, "{text} is missing"),
        ("/api/file", {"name": "a.csv", "text": "a,b\n1,2\n"}, "a.csv: has no column 'text'"),
        ("/api/file", {"name": "a.exe", "text": "x"}, "a.exe"),
        ("/api/try", {"values": {"text": "x"}}, "there is none yet"),
        ("/prompt.txt", None, "there is none yet"),
    ],
)
def test_mistakes_are_answered_with_one_line(server: Server, path: str, body: Any, word: str) -> None:
    status, found = server.ask(path, body)
    assert status == 400
    assert word.lower() in found["error"].lower()
    assert "\n" not in found["error"]
    assert server.settled()["error"] == ""


def test_one_thing_at_a_time_and_a_failing_model_can_be_tried_again(tmp_path: Path) -> None:
    gate, broken = threading.Event(), True

    def unsteady(request: Request) -> str:
        gate.wait(20)
        if broken:
            raise CuelightError("server: does not answer; start it")
        return answers(request)

    where = tmp_path / "talk"
    first = Server(Promptor(scripted(writes, "agent"), scripted(unsteady, "target"), output=where))
    for text in BRIEF.values():
        first.ask("/api/reply", {"text": text})
    status, state = first.ask("/api/reply", {"examples": ROWS})
    assert (status, state["busy"]) == (200, "testing version 1 on 2 inputs")
    assert state["turn"] is None and len(state["versions"]) == 3
    status, found = first.ask("/api/reply", {"text": "again"})
    assert status == 409 and "testing version 1" in found["error"]
    gate.set()
    state = first.settled()
    assert "does not answer" in state["error"] and state["turn"] is None
    assert first.ask("/api/state")[1]["error"] == state["error"]  # a reload shows it too
    first.close()
    # the server was stopped in this state: a new one goes on by itself
    broken = False
    second = Server(Promptor(scripted(writes, "agent"), scripted(unsteady, "target"), output=where))
    assert second.settled()["turn"]["kind"] == "verdict"
    second.close()


# ---- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless",
        "no-sandbox",
        *quiet.split(),
        f"user-data-dir={profile}",
        "window-size=1360,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})  # type: ignore[attr-defined]
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser = browser
        browser.get(f"http://127.0.0.1:{server.port}/")
        self.wait("#composer textarea:enabled")

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())"
        found: list[str] = self.browser.execute_script(script, css)
        return found

    def wait(self, css: str) -> Any:
        until(lambda: self.all(css))
        return self.all(css)[0]

    def click(self, css: str) -> None:
        """Click what may be drawn anew in this moment."""
        from selenium.common.exceptions import StaleElementReferenceException

        for attempt in range(5):
            try:
                self.wait(f"{css}:enabled").click()
                return
            except StaleElementReferenceException:
                assert attempt < 4

    def say(self, text: str) -> None:
        said = len(self.texts(".line.designer"))
        self.wait("#composer textarea:enabled").send_keys(text)
        self.click("#send")
        until(lambda: len(self.texts(".line.designer")) > said and not self.all(".busy"))


def test_the_page_from_the_first_question_to_the_downloaded_prompt(
    browser: Any, server: Server, tmp_path: Path
) -> None:
    page = Page(browser, server)
    assert page.texts("#steps .now") == ["Ask"]
    page.say("Say <b>yes</b> or no")
    assert "Say <b>yes</b> or no" in page.texts(".line.designer")
    assert not page.all("#talk b, #brief span b")  # what is said is text and never markup
    assert page.texts(".slot.filled b") == ["Goal"]
    assert page.texts(".slot.asked b") == ["Users"]
    page.click("#suggest")
    until(lambda: page.texts(".chip") == ["Owners of shops", "Staff at the till"])
    page.click(".chip")
    until(lambda: page.texts(".slot.filled b") == ["Goal", "Users"])
    page.click("#skip")
    until(lambda: page.texts(".slot.asked b") == ["Context"])
    page.say("A till")
    page.say("One word")
    assert page.texts("#brief small") == ["4 of 5 filled"]
    # a slot is changed by a click on it
    page.click("[data-slot=users]")
    page.wait("#change").send_keys(" and markets")
    page.click("#keep")
    until(lambda: "Owners of shops and markets" in page.texts(".slot.filled span"))
    # examples are pasted as a table
    table = "\\n".join(f"{row['text']}\\t{row['wanted']}" for row in ROWS)
    browser.execute_script(
        "const data = new DataTransfer(); data.setData('text', '" + table + "');"
        "document.querySelector('.grid input').dispatchEvent(new ClipboardEvent('paste', "
        "{clipboardData: data, bubbles: true, cancelable: true}))"
    )
    assert [cell.get_property("value") for cell in page.all(".grid input")][:2] == ["typed number 0", "no"]
    page.click("#send")
    page.wait("#accept:enabled")
    assert page.texts("#steps .now") == ["Test"]
    assert [text.split("\n")[1] for text in page.texts(".version")] == ["one line", "brief", "draft"]
    assert page.texts("#tests tbody td.figure") == ["1.00", "0.00"]
    assert page.texts(".defects li")[-1] == "too <b>vague</b>"
    # after a reload all is there again, and what is being typed survives the page's own looks at the server
    browser.refresh()
    page.wait("#composer textarea:enabled").send_keys("Be careful")
    page.click("[data-version='1']")
    until(lambda: page.texts("#prompt h2")[0].startswith("Prompt, version 1"))
    assert page.all("#composer textarea")[0].get_property("value") == "Be careful"
    page.click("#send")
    until(lambda: len(page.all(".version")) == 4)
    until(lambda: "★ best" in page.texts(".version.best")[0])
    assert page.texts(".version.best .figure") == ["1.00"]
    assert page.texts("#prompt pre mark") == ["{text}"]
    # a mistake is told in place, and what was typed stays
    page.click("#edit")
    field = page.wait("#prompt textarea")
    field.clear()
    field.send_keys("nothing")
    page.click("#save")
    until(lambda: "{text} is missing" in page.texts("#notice")[0])
    assert page.all("#prompt textarea")[0].get_property("value") == "nothing"
    page.click("#prompt .row button:last-child")
    page.click("#accept")
    page.wait("#more:enabled")
    assert page.texts("#reported") == ["On examples that chose nothing: best 1.00, one line 0.00."]
    page.wait("[data-try=text]").send_keys("typed number 7")
    page.click("#try")
    until(lambda: page.texts("#answer") == ["yes"])
    assert page.all("#download")[0].get_attribute("href").endswith("/prompt.txt")
    assert page.texts("#prompt pre") == [(tmp_path / "talk" / "prompt.txt").read_text()]
    # nothing came from elsewhere, and no script failed (the one refusal above is the mistake)
    names = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert names and all(name.startswith(f"http://127.0.0.1:{server.port}/") for name in names)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry["message"] for entry in severe if "/api/version" not in entry["message"]] == []


def test_the_page_fits_a_phone_and_says_when_the_server_is_gone(browser: Any, tmp_path: Path) -> None:
    server = Server(
        Promptor(scripted(writes, "agent"), scripted(answers, "target"), output=tmp_path / "talk")
    )
    page = Page(browser, server)
    browser.set_window_size(400, 800)
    page.say("Say yes or no")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    browser.set_window_size(1360, 900)
    server.close()
    page.wait("#composer textarea:enabled").send_keys("Owners")
    page.click("#send")
    until(
        lambda: page.texts("#notice") and "Start it again with the same command" in page.texts("#notice")[0]
    )
    assert page.all("#composer textarea")[0].get_property("value") == "Owners"
