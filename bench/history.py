"""A foreign history to measure with: a simulated Chinese one of QQ, which is not shipped; `FAMILY`, where it is."""

from pathlib import Path

from bot import checksum, config, doctor
from bot.archive import Archive
from bot.persona import Manifest, Personas, new_persona
from training import history
from training.nightly import Night

FAMILY = Path(__file__).parents[2] / "shared" / "data" / "qq_sim" / "family.jsonl"


def family(settings: config.Settings, base_path: Path) -> list[Manifest]:
    """The manifest of a night on the family history, made in data/bench-family/ once; none where it is not there."""
    if not FAMILY.is_file():
        return []
    work = settings.data / "bench-family"
    training = config.Training(
        num_train_epochs=2, learning_rate=5e-4, lora_dropout=0.0, r=16, per_device_train_batch_size=1,
        gradient_accumulation_steps=1, model_max_length=1024,
    )  # fmt: skip
    inner = settings.model_copy(update={"paths": config.Paths(data=work), "training": training})
    personas = Personas(work / "personas", checksum.digest(base_path))
    if "family" not in personas.names():
        archive = Archive(inner.archive_url)
        result = history.load(FAMILY, archive)
        archive.close()
        ((me, _),) = result.reading.owners.most_common(1)
        new_persona(personas.root, "family", result.reading.names[me], (me,))
    if personas.load("family").version is None:
        Night(inner, "family", base_path, checksum.digest(base_path), doctor.plain_progress(), None).run(force=True)
    version = personas.load("family").version
    return [version.manifest] if version else []
