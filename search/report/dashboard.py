"""Additions to optuna-dashboard: `arch.json` on each trial's page, the front on the study's page."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import optuna_dashboard
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from res2net.arch import Arch
from search.study.storage import server_url
from search.study.study import Study, own


def command(folder: Path, storage: str | None = None) -> str:
    """Return the command that opens the dashboard of a run, quoted for a shell."""
    url = server_url(storage) if storage else f"sqlite:///{folder}/study.db"
    return shlex.join(["optuna-dashboard", url, "--artifact-dir", f"{folder}/artifacts"])


def attach_arch(study: Study, number: int, arch: Arch, folder: Path) -> None:
    """Attach `arch.json` to a running trial; Optuna refuses attachments to ended ones."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "arch.json"
        path.write_text(arch.to_json())
        store = FileSystemArtifactStore(folder)
        with own():
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study.live(number))


def show_front(study: Study, figure: go.Figure) -> None:
    """Show the interactive front on the study's page, in place of the previous one."""
    optuna_dashboard.save_plotly_graph_object(study.optuna_study, figure, graph_object_id="pareto")
