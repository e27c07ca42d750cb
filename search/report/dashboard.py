"""What optuna-dashboard shows beyond the study's values: `arch.json` on each trial, the front on the study's page."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from res2net.arch import Arch
from search.study.study import Study, held, server_url


def command(folder: Path, storage: str | None = None) -> str:
    """The command that opens the dashboard of a run, as a shell reads it."""
    url = server_url(storage) if storage else f"sqlite:///{folder}/study.db"
    return shlex.join(["optuna-dashboard", url, "--artifact-dir", f"{folder}/artifacts"])


def attach_arch(study: Study, number: int, arch: Arch, folder: Path) -> None:
    """Attach `arch.json` to a trial that has not ended yet (afterwards Optuna refuses)."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "arch.json"
        path.write_text(arch.to_json())
        store = FileSystemArtifactStore(folder)
        with held():
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study.live(number))


def show_front(study: Study, figure: object) -> None:
    """Show the front's interactive plot on the study's page, in place of the one before."""
    optuna_dashboard.save_plotly_graph_object(study.optuna_study, figure, graph_object_id="pareto")
