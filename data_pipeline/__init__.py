"""Labels of face datasets turned into questions and answers."""
