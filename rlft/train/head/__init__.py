"""New layers on a pretrained trunk: classification, several labels, regression."""
