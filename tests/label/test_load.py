"""Everything at once: 200 submissions, 40 predictions and a training (long)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
from label_server import assemble, call, make_studies, running, submit, truth


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_submissions_under_forty_predictions_and_a_training(tmp_path):
    app, studies = assemble(tmp_path / "app", spatial_size=64), make_studies(tmp_path / "studies", images=20, labels=2)
    waits: list[float] = []
    with running(app, studies) as server:
        server.folder, names = tmp_path, [f"patient{n:03d}" for n in range(20)]
        server.client.train_start("semsim", {"max_epochs": 2, "steps_per_epoch": 20, "val_split": 0.0})
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                start = time.monotonic()
                assert requests.get(f"{server.url}/info/", timeout=120).status_code == 200
                waits.append(time.monotonic() - start)
                time.sleep(0.5)

        def correct(number: int) -> int:
            name = names[number % 20]
            source = nib.load(truth(server, name))
            file = tmp_path / f"{number}.nii.gz"
            nib.save(nib.Nifti1Image(np.asarray(source.dataobj), source.affine), file)
            return submit(server, name, file, number=number).status_code

        def predict(number: int) -> int:
            path = f"/infer/semsim?image={names[number % 20]}&output=image"
            return requests.post(server.url + path, data={"params": "{}"}, timeout=1800).status_code

        watch = threading.Thread(target=look)
        watch.start()
        with ThreadPoolExecutor(12) as pool:
            predictions = [pool.submit(predict, number) for number in range(40)]
            corrections = [pool.submit(correct, number) for number in range(200)]
            assert {f.result() for f in corrections} == {200} and {f.result() for f in predictions} == {200}
        over.set()
        watch.join()
        assert server.wait(seconds=1800)["status"] == "DONE"
        books = call(server, "GET", "/datastore/?output=all").json()["objects"]
    assert all("number" in books[name]["labels"]["final"]["info"] for name in names)
    kept = list((studies / "labels_before" / "final").iterdir())
    assert len(kept) == 200 - 18 and len(list((studies / "labels" / "final").iterdir())) == 20, "each is there or kept"
    print(f"/info: {len(waits)} requests, median {np.median(waits):.2f} s, slowest {max(waits):.2f} s")
    with running(app, studies, conf={"skip_scoring": "true"}) as server:
        again = call(server, "GET", "/datastore/?output=all").json()["objects"]
    for name in names:
        assert again[name]["labels"]["final"]["info"]["number"] == books[name]["labels"]["final"]["info"]["number"]
