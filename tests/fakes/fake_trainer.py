"""A small program that speaks the run folder like the trainer, in milliseconds: `python fake_trainer.py RUN_DIR`.

ISENTROPE_FAKE_STEP: seconds of a step (default 0.05).
ISENTROPE_FAKE_MODE: `normal`; `fail` at step 2; `silent`, ends with code 3 and no word; `deaf`, heeds no request;
`parent`, starts a process in a session of its own; `torn`, breaks off in the middle of a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.events import KIND_PROMPT, KIND_TOKENS, Control, Exit, Frame, KnobSpec, RunFolder
from trainer.stream import Stream

MODE = os.environ.get("ISENTROPE_FAKE_MODE", "normal")
STEP = float(os.environ.get("ISENTROPE_FAKE_STEP", "0.05"))
KNOBS = [
    KnobSpec(name="temperature", value=1.0, low=0.1, high=2.0),
    KnobSpec(name="target_entropy", value=0.5, low=0.0),
]


class FakeTrainer:
    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.attempt = int(os.environ["ISENTROPE_ATTEMPT"])
        self.total = json.loads(folder.config.read_text())["optimiser"]["steps"]
        self.stream = Stream(folder, self.attempt)
        self.step = self.resume_step = self._last_checkpoint()
        self.knobs = {knob.name: knob.value for knob in KNOBS}
        self.control_seq = 0
        self.terminated = False

    def main(self) -> None:
        if MODE == "silent":
            print("Traceback: no module named nonsense", flush=True)
            sys.exit(3)
        print(f"attempt {self.attempt} from step {self.step}", flush=True)
        if MODE == "parent":
            subprocess.Popen(["sleep", "600"], start_new_session=True)
        signal.signal(signal.SIGTERM, self._on_term)
        started = {"resume_step": self.step, "total_steps": self.total, "pid": os.getpid(), "device": "cpu"}
        knobs = [knob.model_dump() for knob in KNOBS]
        self.stream.emit("started", self.step, **started, parameters=1, vocabulary=16, knobs=knobs)
        while self.step < self.total:
            if self._asked_to_stop():
                self._end("stopped")
            if self.terminated:
                self._end("interrupted", "The worker asked for it.")
            self._one_step()
        self._end("finished")

    def _one_step(self) -> None:
        self.step += 1
        self._live()
        time.sleep(STEP)
        values = {"reward/mean": self.step / self.total, "entropy/mean": 1 / self.step}
        self.stream.emit("metrics", self.step, values=values)
        if MODE == "fail" and self.step == 2:
            self.stream.emit("failed", self.step, reason="the reward is bad; mend it", field="rewards.0")
            self._exit("failed", "the reward is bad; mend it", "rewards.0", 1)
        if MODE == "torn" and self.step == 2:
            with self.folder.events.open("ab") as file:
                file.write(b'{"seq": 99, "attem')
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step % 5 == 0:
            self._checkpoint()

    def _live(self) -> None:
        self.stream.begin_step()
        self.stream.progress(self.step, "rollout", 0, 4)
        prompt = json.dumps({"group": 0, "sample": 0, "prompt": "1+1="}).encode()
        self.stream.frames(Frame(KIND_PROMPT, self.attempt, self.step, payload=prompt))
        tokens = b"\x07\0\0\0" + b"\x01\0" + b"\0\0" + b"\0\0" + b"2"
        self.stream.frames(Frame(KIND_TOKENS, self.attempt, self.step, count=1, payload=tokens))

    def _asked_to_stop(self) -> bool:
        control = Control.model_validate_json(self.folder.control.read_bytes())
        if control.seq > self.control_seq:
            self.control_seq = control.seq
            for name, value in control.knobs.items():
                old, self.knobs[name] = self.knobs[name], value
                self.stream.emit("knob", self.step + 1, name=name, old=old, new=value, control_seq=control.seq)
        return control.stop and MODE != "deaf"

    def _last_checkpoint(self) -> int:
        return max((int(path.parent.name[5:]) for path in self.folder.checkpoints.glob("*/manifest.json")), default=0)

    def _checkpoint(self) -> None:
        path = self.folder.checkpoint(self.step)
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_bytes(b"0" * 1000)
        (path / "manifest.json").write_text("{}")
        self.stream.emit("checkpoint", self.step, path=str(path.relative_to(self.folder.path)), bytes=1002)

    def _end(self, status: str, reason: str = "") -> None:
        self._checkpoint()
        self.stream.emit("finished", self.step, status=status, reason=reason)
        self._exit(status, reason)

    def _exit(self, status: str, reason: str, field: str = "", code: int = 0) -> None:
        said = Exit(status=status, reason=reason, field=field, code=code, attempt=self.attempt)
        self.folder.exit.write_text(said.model_dump_json())
        sys.exit(code)

    def _on_term(self, number: int, frame: object) -> None:
        self.terminated = MODE != "deaf"


if __name__ == "__main__":
    FakeTrainer(RunFolder(Path(sys.argv[1]))).main()
