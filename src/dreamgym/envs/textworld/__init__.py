"""TextWorld cooking (arXiv 1806.11532): games, panels, state mappers, behaviours and the teacher. Extra: ``[textworld]``."""
