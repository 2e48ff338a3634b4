"""Detection and segmentation on the backbone: Mask R-CNN and UperNet, as in the paper's Tables 2
and 3. The home of pycocotools.

In:  a `ModelConfig`, the weights of a classifier, images with boxes, masks or maps of classes.
Out: modules with torchvision's way of calling, and files that timm and onnxruntime read; a run
     directory with records, checkpoints, COCO's figures and a sheet of predictions.
Read: backbone.py, mask_rcnn.py (its parts: anchors.py, roi_align.py, roi_heads.py); for a training
     coco.py, detect_images.py, detect_recipe.py, detect_step.py, detect.py, evaluate.py.
"""
