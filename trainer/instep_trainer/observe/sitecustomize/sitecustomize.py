"""First on a rank's path, so Python imports it at start: begins the rank's record, then hands on to the sitecustomize
behind it."""

import importlib.util
import os
import sys


def _start() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH120, PTH100  runs before anything else is imported
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != folder]  # noqa: PTH100
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != folder]
    if inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join(inherited)
    else:
        os.environ.pop("PYTHONPATH", None)
    own = sys.modules.pop("sitecustomize", None)
    spec = importlib.util.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)
    elif own is not None:
        sys.modules["sitecustomize"] = own
    from instep_trainer.observe.start import is_rank, start_in_fresh_interpreter

    if is_rank():
        start_in_fresh_interpreter()


_start()
