"""Detection and segmentation on the backbone: Mask R-CNN and UperNet, as in the paper's Tables 2
and 3. The home of pycocotools.

In:  a `ModelConfig`, the weights of a classifier, images with boxes, masks or maps of classes.
Out: modules with torchvision's way of calling, and files that timm and onnxruntime read; a run
     directory with records, checkpoints, COCO's figures or mIoU, and a sheet of predictions.
Read: backbone.py; mask_rcnn.py with its parts proposals.py and roi_heads.py; upernet.py with
resizing.py; dense_sets.py (the data); of a detection training coco.py, detect_images.py,
detect_step.py, detect.py and evaluate.py; of a segmentation training ade20k.py, segment_images.py,
segment_step.py, segment.py and confusion.py; loop.py is the loop of both, and dense_directory.py
their files. The recipes stand beside the package's others: detect_recipe.py, segment_recipe.py.
trained_detector.py and trained_segmenter.py use the network of a finished run.
"""
