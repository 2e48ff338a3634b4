"""Detection and segmentation on MambaOut's backbone. The home of pycocotools.

In:   a folder or a bucket in COCO format, a recipe
Out:  a run directory with records, checkpoints, COCO's figures and a sheet of predictions
Read: coco.py, detect_images.py, detect_recipe.py, detect_step.py, detect.py, evaluate.py
"""
