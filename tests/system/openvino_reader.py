"""Loads models with the real OpenVINO runtime, in a loop, as fast as it can; run by a Python that has ``openvino``.

    python openvino_reader.py make FOLDER N...       writes FOLDER/N/model.xml and model.bin, which say N in both
    python openvino_reader.py read EXCHANGED MODEL   until its standard input ends: the version at EXCHANGED, opened by
                                                     its directory, and the newest version of MODEL, by its path

    python openvino_reader.py tell FILE...           a digest of what each model makes of the same input
    python openvino_reader.py infer DIRECTORY        until its standard input ends: loads a version's model, works with
                                                     it; DIRECTORY/digest says what it has to make of that input

``read`` and ``infer`` print one line of JSON: how many loads there were, and what was wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading

import numpy
import openvino

WEIGHTS = 4096


def make(folder: str, numbers: list[int]) -> None:
    from openvino import opset13 as ops

    for number in numbers:
        source = ops.parameter([1, WEIGHTS], dtype=numpy.float32)
        weights = ops.constant(numpy.full((1, WEIGHTS), number, dtype=numpy.float32))
        model = openvino.Model([ops.add(source, weights)], [source], f"version-{number}")
        os.makedirs(f"{folder}/{number}")
        openvino.save_model(model, f"{folder}/{number}/model.xml", compress_to_fp16=False)


class Loader:
    def __init__(self) -> None:
        self.core = openvino.Core()
        self.loads, self.failed, self.mixed = 0, list[str](), list[str]()

    def load(self, directory: str) -> None:
        """The graph and the weights must be of the same version."""
        try:
            model = self.core.read_model(f"{directory}/model.xml")
            name = model.get_friendly_name()
            compiled = self.core.compile_model(model, "CPU")
            found = compiled(numpy.zeros((1, WEIGHTS), dtype=numpy.float32))[0]
        except Exception as error:
            self.failed.append(f"{directory}: {error}"[:300])
            return
        finally:
            self.loads += 1
        if not (found == found[0, 0]).all() or name != f"version-{int(found[0, 0])}":
            self.mixed.append(f"{directory}: {name} with weights of {found[0, 0]}")


def read(exchanged: str, model: str) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    loader = Loader()
    while not ended.is_set():
        descriptor = os.open(exchanged, os.O_RDONLY | os.O_DIRECTORY)
        try:
            loader.load(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        newest = max(int(name) for name in os.listdir(model) if name.isdigit())
        loader.load(f"{model}/{newest}")
    print(json.dumps({"loads": loader.loads, "failed": loader.failed[:5], "mixed": loader.mixed[:5]}))


def compiled(path: str) -> openvino.CompiledModel:
    """For an image of three colours; what finds lines takes heights of 32, what reads them one of 48."""
    core = openvino.Core()
    model = core.read_model(path)
    for height in (48, 64):
        try:
            model.reshape({model.input(0).get_any_name(): [1, 3, height, 192]})
            break
        except RuntimeError:
            continue
    return core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})


def digest(model: openvino.CompiledModel) -> str:
    given = numpy.random.default_rng(1).random(tuple(model.input(0).shape), dtype=numpy.float32)
    return hashlib.sha256(numpy.round(model(given)[0], 3).tobytes()).hexdigest()


def infer(directory: str) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    loads, works, wrong = 0, 0, list[str]()
    while not ended.is_set():
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            here = f"/proc/self/fd/{descriptor}"
            with open(f"{here}/digest") as file:
                wanted = file.read()
            model = compiled(f"{here}/model.onnx")
            loads += 1
            for _ in range(3):
                if digest(model) != wanted:
                    wrong.append(f"load {loads} works as another model")
                works += 1
        except Exception as error:
            wrong.append(str(error)[:300])
        finally:
            os.close(descriptor)
    print(json.dumps({"loads": loads, "works": works, "wrong": wrong[:5]}))


if __name__ == "__main__":
    if sys.argv[1] == "tell":
        print(json.dumps([digest(compiled(path)) for path in sys.argv[2:]]))
    elif sys.argv[1] == "infer":
        infer(sys.argv[2])
    elif sys.argv[1] == "make":
        make(sys.argv[2], [int(number) for number in sys.argv[3:]])
    else:
        read(sys.argv[2], sys.argv[3])
