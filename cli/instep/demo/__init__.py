"""`instep demo`: the main job on one machine, played and scored. It reaches every part by subprocess and HTTP, as a
user would."""
